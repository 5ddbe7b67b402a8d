"""PEFT adapters: read as the factors they are, bound to the models they adapt, written from merged task vectors."""
