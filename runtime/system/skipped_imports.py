"""What libraries load for purposes that no command of ours has: a third of the time that a command starts in.

For our own processes alone: a program that imports this package gets its libraries whole.
"""

import sys


def leave_out() -> None:
    """Call this before nibabel and OpenVINO are imported."""
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # converts models; is optional
    if "nibabel" not in sys.modules and "pydicom" not in sys.modules:
        # To show one kind of header extension as a data set. Without pydicom it is bytes, which we pass on.
        sys.modules["pydicom"] = None  # type: ignore[assignment]
        try:
            import nibabel.nifti1  # noqa: F401
        finally:
            del sys.modules["pydicom"]
