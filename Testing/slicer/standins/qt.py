"""`qt` as Slicer's Python has it, on top of PySide6.

In PythonQt a property is an attribute (`label.text`), in PySide6 a method (`label.text()`). The module under test uses
what both understand: set methods, `signal.connect`, and `property("name")` for reading.
"""

import ctypes
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

for _part in (QtCore, QtGui, QtWidgets):
    globals().update({name: getattr(_part, name) for name in dir(_part) if name.startswith("Q")})

if sys.version_info < (3, 12):
    # PySide6 6.12 takes one reference too many from None with every call that returns nothing, and the process dies when
    # none is left. From Python 3.12 on these objects have no count.
    for _constant in (None, True, False):
        ctypes.c_ssize_t.from_address(id(_constant)).value += 1 << 40

Signal, Property = QtCore.Signal, QtCore.Property
application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["tests"])


class QUiLoader(QtUiTools.QUiLoader):
    """Knows the stand-ins for widgets of ctk and qMRML."""

    def __init__(self) -> None:
        super().__init__()
        import ctk
        import qmrml

        for module in (ctk, qmrml):
            for name in dir(module):
                if name.startswith(("ctk", "qMRML")):
                    self.registerCustomWidget(getattr(module, name))


# slicer.util finds the widgets of a .ui file by this PythonQt attribute.
QtCore.QObject.name = property(lambda self: self.objectName(), lambda self, name: self.setObjectName(name))
