"""The only room that touches the inside of mergekit and lm-eval; only the start-up hook and the CLI import it."""
