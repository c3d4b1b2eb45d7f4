"""The CDK app: ``cdk synth -c environment=dev``, in this folder."""

from __future__ import annotations

import sys

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from caldp.errors import CaldpError
from infra import packaging, settings
from infra.stack import FLAGS, CaldpStack


def main() -> None:
    """Synthesize the stack of the environment that the context names."""
    app = cdk.App(context=FLAGS)
    name = app.node.try_get_context("environment") or "dev"
    try:
        environment = settings.load(str(name))
        out = packaging.REPOSITORY / "build" / "functions" / environment.infra.name
        infra = environment.infra
        packages = packaging.build(out, environment.campaign_json, infra.architecture, crds=infra.crds_server)
    except CaldpError as error:
        sys.exit(str(error))
    CaldpStack(app, environment, packages)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks())
    app.synth()


if __name__ == "__main__":
    main()
