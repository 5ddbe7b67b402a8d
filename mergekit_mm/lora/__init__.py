"""PEFT adapters: read as the factors they are, and written from merged task vectors."""
