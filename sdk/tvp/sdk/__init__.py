"""TVP's client: loads a task bundle and answers questions about pictures, without PyTorch.

    from tvp import sdk
    task = sdk.load("count")
    print(task.ask("shelf.jpg", "How many objects are there?"))
"""

from . import errors
from ._doctor import doctor
from ._image import ImageLike, read_image
from ._task import Answer, Ranked, Task, View, load, tasks

__all__ = ["Answer", "ImageLike", "Ranked", "Task", "View", "doctor", "errors", "load", "read_image", "tasks"]
