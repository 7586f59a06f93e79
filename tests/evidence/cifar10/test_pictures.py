import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from tools.evidence.cifar10.pictures import augmented, colour_statistics, normalised, read_cifar10


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (value, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def test_jpeg_pictures_are_split_into_train_and_test(tmp_path):
    files = [jpeg(value) for value in (10, 100, 200)]
    np.savez(
        tmp_path / "c.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), labels=[3, 1, 2], split=[0, 1, 0],
        offsets=np.cumsum([0, *map(len, files)]),
    )  # fmt: skip
    data = read_cifar10(tmp_path / "c.npz")
    assert data.train.labels.tolist() == [3, 2]
    assert data.test.labels.tolist() == [1]
    assert data.train.values.shape == (2, 3, 32, 32)
    assert abs(data.test.values[0, 0].float().mean() - 100) < 3
    assert data.test.values[0, 1].float().mean() < 3


def archive(folder, batch: object):
    names = ["batches.meta", *(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    content = pickle.dumps(batch)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as file:
        for name in names:
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return folder / "cifar-10-python.tar.gz", [[name, hashlib.md5(content).hexdigest()] for name in names]


def test_the_usual_archive_is_read(tmp_path, monkeypatch):
    values = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072).astype(np.uint8)
    path, sums = archive(tmp_path, {"data": values, "labels": [4, 7], "label_names": ["bird", "cat"]})
    monkeypatch.setattr(CIFAR10, "meta", dict(CIFAR10.meta, filename=sums[0][0], md5=sums[0][1]))
    monkeypatch.setattr(CIFAR10, "train_list", sums[1:-1])
    monkeypatch.setattr(CIFAR10, "test_list", sums[-1:])
    data = read_cifar10(path)
    assert data.train.labels.tolist() == [4, 7] * 5
    assert torch.equal(data.test.values.reshape(2, -1), torch.from_numpy(values))


class Calls:
    def __reduce__(self):
        return print, ("this ran",)


def test_an_archive_with_other_files_is_refused_unread(tmp_path, capsys):
    path, _ = archive(tmp_path, {"data": Calls()})
    with pytest.raises(ValueError, match="checksums"):
        read_cifar10(path)
    assert "this ran" not in capsys.readouterr().out


def damage(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["absent.npz", "text.tar.gz", "text.npz", "cut.npz", "cut.tar.gz"])
def test_another_file_is_refused_by_name(tmp_path, name):
    for text in ("text.tar.gz", "text.npz"):
        (tmp_path / text).write_text("no archive")
    np.savez(tmp_path / "cut.npz", jpeg=np.arange(5000), offsets=0, labels=0, split=0)
    damage(tmp_path / "cut.npz")
    path, _ = archive(tmp_path, {"data": np.random.default_rng(0).bytes(50000)})
    path.rename(tmp_path / "cut.tar.gz").write_bytes((tmp_path / "cut.tar.gz").read_bytes()[:-30000])
    with pytest.raises(ValueError, match=name):
        read_cifar10(tmp_path / name)


def test_normalised_pictures_have_mean_zero_and_spread_one():
    values = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    result = normalised(values, colour_statistics(values)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(result.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std(1), torch.ones(3), atol=1e-5, rtol=0)


def test_an_augmented_picture_is_a_mirrored_or_straight_shift_by_four_pixels_at_most():
    values = torch.randint(1, 256, (30, 3, 32, 32), dtype=torch.uint8)
    padded = torch.nn.functional.pad(values, (4,) * 4)
    seen = set()
    for index, picture in enumerate(augmented(values, torch.Generator().manual_seed(0))):
        windows = padded[index].unfold(1, 32, 1).unfold(2, 32, 1)
        for mirrored in (False, True):
            shown = picture.flip(-1) if mirrored else picture
            found = (windows == shown[:, None, None]).all(-1).all(-1).all(0).nonzero()
            seen |= {(mirrored, *shift) for shift in found.tolist()}
            if len(found):
                break
        else:
            pytest.fail(f"picture {index} is no shift of itself")
    assert {mirrored for mirrored, *_ in seen} == {False, True}
    assert len(seen) > 20
