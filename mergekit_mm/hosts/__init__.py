"""How the hosts find this package: what the start-up hook calls once a module of a host has been imported.

| file | what it does | host |
|---|---|---|
| `registration.py` | checks mergekit's version, and registers the merge methods | mergekit, public API |
| `run_merge.py` | routes `run_merge` through this package, if `plan.scope` says so | mergekit, replaced |
| `lm_eval_tasks.py` | adds our tasks to every `TaskManager`, and prepares all that it loads | lm-eval, replaced |
| `lm_eval_model.py` | adds the model `mllm` | lm-eval, public API |
| `lm_eval_command.py` | ends the command with the message of an error that the user can mend | lm-eval, replaced |
| `transformers_auto.py` | makes the auto classes know omni models | transformers, public API |
| `wrapping.py` | replaces a function of a host, once | any |
| `doctor.py` | finds out for `mergekit-mm doctor` what is installed and active | all |

`_autoload.HOOKS` says which function is called after which import. Each function names the versions of the host that it
is written for, and `tests/install/test_host_seams.py` fails where a host has changed. This room may import every other
one, as a rule within a function, so that a host that never needs the package pays nothing. Only the start-up hook,
`register.py` and the command line import this room. Nothing here decides anything about a merge or an evaluation.
"""
