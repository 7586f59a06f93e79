"""The instruments as commands have them: a config and a checkpoint in, a JSON file and a picture out."""
