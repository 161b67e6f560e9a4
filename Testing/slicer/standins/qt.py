"""`qt` as Slicer's Python has it, on top of PySide6.

In PythonQt a property is an attribute (`label.text`), in PySide6 a method (`label.text()`). The module under test uses
what both understand: set methods, `signal.connect`, and `property("name")` for reading.
"""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

for _part in (QtCore, QtGui, QtWidgets):
    globals().update({name: getattr(_part, name) for name in dir(_part) if name.startswith("Q")})

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
