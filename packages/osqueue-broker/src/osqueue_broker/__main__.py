"""`python -m osqueue_broker`."""

import sys

from .cli import main

sys.exit(main())
