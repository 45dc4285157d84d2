"""Installed distributions as pip leaves them, in a folder.

METADATA, RECORD, INSTALLER, entry_points.txt and modules.
"""

import re
import textwrap
from pathlib import Path

PART = """
    from mvkit import spec

    @spec
    class Sharp:
        \"\"\"A prior.\"\"\"
        power: float = 2.0

        def build(self, sizes):
            raise NotImplementedError
"""


def install(root, package, module, code, parts="", version="1.0", metadata=None):
    """A distribution with the entry point `module = module`, its code, and a module of parts."""
    info = root / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    files = {
        f"{module}.py": textwrap.dedent(code),
        f"{info.name}/METADATA": metadata
        or f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info.name}/INSTALLER": "pip\n",
        f"{info.name}/entry_points.txt": f"[mvkit]\n{module} = {module}\n",
    }
    if parts:
        files[f"{module}_parts.py"] = textwrap.dedent(parts)
    files[f"{info.name}/RECORD"] = "".join(
        f"{name},,\n" for name in [*files, f"{info.name}/RECORD"]
    )
    for name, text in files.items():
        (root / name).write_text(text)
    return info


def declares(*components):
    listed = ", ".join(f"Component({', '.join(map(repr, c))})" for c in components)
    return (
        "from mvkit.registry import Component, hookimpl\n\n"
        f"@hookimpl\ndef mvkit_components():\n    return [{listed}]\n"
    )


def guide_package(root):
    """The package whose files docs/plugins.md lists, written to a folder."""
    text = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
    listings = re.findall(r"```(?:python|toml)\n# (\S+\.(?:py|toml))\n(.*?)```", text, re.DOTALL)
    for name, listing in listings:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(listing)
    return root
