"""Stand-ins for the CTK widgets of the module's window."""

import qt

_HEADER_PIXELS = 24


class ctkCollapsibleButton(qt.QWidget):
    """A group that can be folded."""

    contentsCollapsed = qt.Signal(bool)

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, _HEADER_PIXELS + 2, 0, 0)

    def _setText(self, text: str) -> None:
        self._text = text

    def _setCollapsed(self, collapsed: bool) -> None:
        changed, self._collapsed = collapsed != self._collapsed, collapsed
        for child in self.findChildren(qt.QWidget, options=qt.Qt.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        self.setMaximumHeight(_HEADER_PIXELS + 2 if collapsed else 16777215)
        if changed:
            self.contentsCollapsed.emit(collapsed)

    text = qt.Property(str, lambda self: self._text, _setText)
    collapsed = qt.Property(bool, lambda self: self._collapsed, _setCollapsed)

    def showEvent(self, event: object) -> None:
        self._setCollapsed(self._collapsed)  # children made after the property was read are hidden, too

    def paintEvent(self, event: object) -> None:
        painter = qt.QPainter(self)
        painter.fillRect(0, 0, self.width(), _HEADER_PIXELS, self.palette().color(qt.QPalette.Window).darker(106))
        painter.drawText(8, 17, ("▸ " if self._collapsed else "▾ ") + self._text)
        painter.end()
