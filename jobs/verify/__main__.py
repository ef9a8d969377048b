"""python -m jobs.verify"""

import sys

from jobs.verify.workflow import main

if __name__ == "__main__":
    sys.exit(main())
