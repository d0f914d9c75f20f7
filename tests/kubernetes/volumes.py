"""The volumes of a test pod as folders, and the environment of its containers."""

from __future__ import annotations

import base64
import re
from functools import cached_property
from pathlib import Path

from tests.kubernetes.api import Api, Object


class Volumes:
    """The folders of a pod's volumes. In texts, a folder's path replaces the path at which it is mounted."""

    def __init__(self, api: Api, manifest: Object, folder: Path, address: str) -> None:
        self._api, self._manifest, self._folder, self.address = api, manifest, folder, address
        self._namespace = f"/api/v1/namespaces/{manifest['metadata']['namespace']}"

    def local(self, text: str) -> str:
        """Replace the paths of mounts by their folders, and 0.0.0.0 by the pod's address."""
        paths = {mount: str(folder) for mount, folder in self._paths.items()}
        longest_first = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
        # Replace in one pass, because a folder's own path may begin with a mount's path, /tmp, and must not be replaced
        # again. The path of a URL without a host, such as SQLite's, follows three slashes.
        path = rf"(?:(?<![\w/])|(?<=:///))({longest_first})(?=/|$)"
        changed = re.sub(path, lambda found: paths[found[1]], text) if paths else text
        return changed.replace("0.0.0.0", self.address)

    def environment(self, container: Object) -> dict[str, str]:
        """Return the container's environment."""
        told = {entry["name"]: self.local(self._value(entry)) for entry in container.get("env", [])}
        home, scratch = self._paths.get("/var/cache/postback"), self._paths.get("/tmp")
        return {"HOME": str(home or scratch or self._folder), "TMPDIR": str(scratch or self._folder), **told}

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Maps the path at which the containers mount a folder to the folder, which is filled."""
        folders = {volume["name"]: self._filled(volume) for volume in self._manifest["spec"].get("volumes", [])}
        mounts = [m for each in self._manifest["spec"]["containers"] for m in each.get("volumeMounts", [])]
        return {mount["mountPath"]: folders[mount["name"]] for mount in mounts}

    def _filled(self, volume: Object) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            return self._claimed(claim["claimName"])
        folder = self._folder / str(volume["name"])
        folder.mkdir(parents=True, exist_ok=True)
        if secret := volume.get("secret"):
            mode = secret.get("defaultMode", 0o644)
            for name, content in self._secret(secret["secretName"]).items():
                (folder / name).write_bytes(content)
                (folder / name).chmod(mode)
        if config := volume.get("configMap"):
            for name, text in self._api.get(f"{self._namespace}/configmaps/{config['name']}")["data"].items():
                (folder / name).write_text(text)
        return folder

    def _claimed(self, name: str) -> Path:
        """The folder of the PersistentVolume that a test has made, and that Kubernetes has bound to the claim."""
        bound = self._api.get(f"{self._namespace}/persistentvolumeclaims/{name}")["spec"]["volumeName"]
        return Path(self._api.get(f"/api/v1/persistentvolumes/{bound}")["spec"]["hostPath"]["path"])

    def _secret(self, name: str) -> dict[str, bytes]:
        data = self._api.get(f"{self._namespace}/secrets/{name}")["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def _value(self, entry: Object) -> str:
        source = entry.get("valueFrom")
        if source is None:
            return str(entry.get("value", ""))
        if reference := source.get("secretKeyRef"):
            return self._secret(reference["name"])[reference["key"]].decode()
        assert source["fieldRef"]["fieldPath"] == "metadata.name", f"this node does not know {source}"
        return str(self._manifest["metadata"]["name"])
