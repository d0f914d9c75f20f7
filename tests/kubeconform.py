"""kubeconform, which checks manifests by JSON schemas, with schemas that are on this machine.

Kubernetes' own schemas are those of the package `kubernetes-validate`; those of custom resources come from their
projects' Go modules.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests import custom_resources
from tests.go_tools import KUBECONFORM, ensure

_PACKAGED = Path(kubernetes_validate.__file__).with_name("kubernetes-json-schema")
_OWN = "{{.NormalizedKubernetesVersion}}-local{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}.json"
_CUSTOM = "{{.ResourceKind}}_{{.ResourceAPIVersion}}.json"


class Kubeconform:
    """Checks manifests. `folder` gets the schemas."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for kind, version, schema in custom_resources.schemas():
            (folder / f"{kind.lower()}_{version}.json").write_text(json.dumps(schema))

    def faults(self, manifests: str, version: str) -> dict[str, str]:
        """Return the fault of each object that a Kubernetes of this version would refuse, by `Kind/name`."""
        for manifest in yaml.safe_load_all(manifests):
            if manifest and not custom_resources.is_custom(manifest):
                self._copy(manifest, version)
        locations = [f"-schema-location={self._folder}/{each}" for each in (_OWN, _CUSTOM)]
        done = subprocess.run(
            [ensure(KUBECONFORM), "-strict", "-output=json", f"-kubernetes-version={version}", *locations],
            input=manifests,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert not done.stderr, done.stderr
        found = json.loads(done.stdout)["resources"]
        return {f"{each['kind']}/{each['name']}": each["msg"] for each in found}

    def _copy(self, manifest: dict[str, Any], version: str) -> None:
        """Copy the schema of a kind with the definitions, which the package's files look for under `/api`."""
        group, _, name = manifest["apiVersion"].rpartition("/")
        suffix = "-".join(part for part in (manifest["kind"].lower(), group.partition(".")[0], name) if part)
        place = f"v{version}-local-strict"
        for file in (f"{suffix}.json", "_definitions.json"):
            target = self._folder / place / file
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                schema = json.loads((_PACKAGED / place / file).read_text())
                # The `$id` is an address, from which kubeconform would load the definitions.
                del schema["$id"]
                target.write_text(json.dumps(schema).replace('"/api/_definitions', '"_definitions'))
