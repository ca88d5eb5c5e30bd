"""`python -m hybridload`: the command line."""

from hybridload.cli import main

if __name__ == "__main__":
    main()
