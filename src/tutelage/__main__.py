"""`python -m tutelage`, the command under torchrun and without an installed script."""

from tutelage.cli import main

if __name__ == "__main__":
    main()
