"""Start the precision explorer: `python app.py` (see `python app.py --help`). Also the entry point of the
Hugging Face Space."""

import sys

from app.main import main

if __name__ == "__main__":
    sys.exit(main())
