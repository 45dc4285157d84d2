"""Models of mvkit on the Hugging Face Hub: `push` and `pull`."""

from mvkit_hub.pinned import Pinned, resolve
from mvkit_hub.pull import pull
from mvkit_hub.push import push

__all__ = ["Pinned", "pull", "push", "resolve"]
