"""`python -m moxserve` is `moxserve`."""

from moxserve.cli.main import main

if __name__ == "__main__":
    main()
