"""What the commands of `ctxt` do; how they are called is declared in gateway/cli.py."""
