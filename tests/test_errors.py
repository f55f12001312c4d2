"""A full disk, wherever it shows, becomes one paragraph."""

import errno
import subprocess
import sys

from megatron_rl.errors import full_disk, refused


def test_found_at_the_root_of_a_chain() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/runs/a/step-1")
        except OSError as error:
            raise RuntimeError("the writer failed") from error
    except RuntimeError as error:
        said = full_disk(error)
    assert said is not None and "/runs/a/step-1 could not be written" in str(said)
    assert full_disk(RuntimeError("worker: OSError: [Errno 28] No space left on device")) is not None
    assert full_disk(OSError(errno.EACCES, "Permission denied", "/runs")) is None
    assert full_disk(ValueError("no")) is None


def test_what_the_machine_refuses_names_the_file_and_what_may_be_our_fault_is_no_message() -> None:
    for number, said in ((errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")):
        assert str(refused(OSError(number, said, "/runs/a"))) == f"/runs/a cannot be used: {said}."
    assert str(refused(OSError(errno.EMFILE, "Too many open files"))) == "The system refused: Too many open files."
    assert "The disk is full" in str(refused(OSError(errno.ENOSPC, "No space left on device", "/runs/a")))
    assert refused(OSError(errno.ENOENT, "No such file or directory", "/runs/a")) is None
    assert refused(ValueError("no")) is None


def test_a_process_says_so_and_ends_with_2() -> None:
    code = (
        "from megatron_rl.system.processes import run\nrun(lambda: open('/dev/full', 'w', buffering=1).write('x\\n'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: The disk is full") and done.stderr.count("\n") == 1
