"""`python -m cnnlab` is the `cnnlab` command."""

from cnnlab.cli.app import main

if __name__ == "__main__":
    main()
