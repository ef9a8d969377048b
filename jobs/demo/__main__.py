"""python -m jobs.demo"""

import sys

from jobs.demo.workflow import main

if __name__ == "__main__":
    sys.exit(main())
