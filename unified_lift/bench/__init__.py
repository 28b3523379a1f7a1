"""The paper's tables as a resumable grid of scene x method x seed, run through the command line."""
