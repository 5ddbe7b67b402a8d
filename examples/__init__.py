"""Things to run and to learn from. Start them from the root of the repository: `python -m examples.easy_vqa.run`."""
