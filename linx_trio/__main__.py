"""``python -m linx_trio`` is the command ``linx``."""

from linx_trio._cli import main

if __name__ == "__main__":
    main()
