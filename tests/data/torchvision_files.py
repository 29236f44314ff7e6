"""Writes small data sets in the formats that torchvision reads, with noise as their images."""

import bz2
import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from vggexp.rng import generator

TRAIN = 24  # images for training, the same number of each class
TEST = 12
WNIDS = ("n01440764", "n02102040")


def noise(*key: object, shape: tuple[int, ...]) -> numpy.ndarray:
    draws = generator(0, "torchvision files", *key)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws).numpy()


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(path.name, shape=(36, 40, 3))).save(path)


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_class_folders(root: Path, classes: tuple[str, ...], count: int, suffix: str) -> None:
    for label in range(count):
        write_image(root / classes[label % len(classes)] / f"{label:04d}{suffix}")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(values: numpy.ndarray) -> bytes:
    """Returns a file of the IDX format."""
    kind = {"uint8": 8, ">i4": 12, "int32": 12}[str(values.dtype)]
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def labels(count: int, classes: int = 4) -> numpy.ndarray:
    return (numpy.arange(count) % classes).astype("uint8")


def write_idx(folder: Path, images: str, targets: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / images).write_bytes(idx(noise(images, shape=(count, 28, 28))))
    (folder / targets).write_bytes(idx(labels(count)))


def kmnist(root, patch):
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        write_idx(root / "KMNIST/raw", *names, count)


def emnist(root, patch):
    for part, count in (("train", TRAIN), ("test", TEST)):
        prefix = f"emnist-letters-{part}"
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        write_idx(root / "EMNIST/raw", *names, count)


def qmnist(root, patch):
    folder = root / "QMNIST/raw"
    for part, count in (("train", TRAIN), ("test", TEST)):
        write_idx(folder, f"qmnist-{part}-images-idx3-ubyte", "unused", count)
        targets = numpy.zeros((count, 8), ">i4")
        targets[:, 0] = labels(count)
        targets[:, 1:] = 77
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(idx(targets))


def svhn(root, patch):
    """Labels are 1..10, of which 10 is the digit 0."""
    split_list = dict(datasets.SVHN.split_list)
    for part, count in (("train", TRAIN), ("test", TEST)):
        file = f"{part}_32x32.mat"
        targets = numpy.where(labels(count) == 0, 10, labels(count)).reshape(-1, 1)
        images = noise(file, shape=(32, 32, 3, count))
        savemat(root / file, {"X": images, "y": targets.astype("uint8")})
        split_list[part] = ["http://localhost:9/", file, md5(root / file)]
    patch.setattr(datasets.SVHN, "split_list", split_list)


def stl10(root, patch):
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, count in (("train", TRAIN), ("test", TEST)):
        (folder / f"{part}_X.bin").write_bytes(noise(part, shape=(count, 3, 96, 96)).tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels(count) + 1).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    write_text(folder / "class_names.txt", *"airplane bird car cat deer dog".split())
    write_text(folder / "fold_indices.txt", *["0 1 2 3 4 5 6 7 8 9 10 11"] * 10)
    for files in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.STL10, files)]
        patch.setattr(datasets.STL10, files, [[name, md5(folder / name)] for name in names])


def usps(root, patch):
    split_list = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        file = f"{part}.bz2"
        rows = []
        for image, label in zip(noise(file, shape=(count, 256)), labels(count), strict=True):
            values = [f"{i}:{value / 127.5 - 1:.6f}" for i, value in enumerate(image, 1)]
            rows.append(" ".join([str(label + 1), *values]))
        (root / file).write_bytes(bz2.compress("\n".join(rows).encode()))
        split_list[part] = ["http://localhost:9/", file, md5(root / file)]
    patch.setattr(datasets.USPS, "split_list", split_list)


def semeion(root, patch):
    one_hot = numpy.eye(10)[labels(TRAIN)]
    table = numpy.hstack([noise("semeion", shape=(TRAIN, 256)) % 2, one_hot])
    numpy.savetxt(root / "semeion.data", table, "%.4f")
    patch.setattr(datasets.SEMEION, "md5_checksum", md5(root / "semeion.data"))


def fer2013(root, patch):
    file = root / "fer2013/fer2013.csv"
    file.parent.mkdir()
    with open(file, "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["emotion", "pixels", "Usage"])
        for usage, count in (("Training", TRAIN), ("PrivateTest", TEST)):
            for label in labels(count):
                pixels = noise(usage, label, shape=(48 * 48,))
                table.writerow([label, " ".join(map(str, pixels)), usage])
    resources = {**datasets.FER2013._RESOURCES, "fer": (file.name, md5(file))}
    patch.setattr(datasets.FER2013, "_RESOURCES", resources)


def eurosat(root, patch):
    write_class_folders(root / "eurosat/2750", ("Forest", "River"), TRAIN, ".jpg")


def country211(root, patch):
    for part, count in (("train", TRAIN), ("test", TEST)):
        write_class_folders(root / "country211" / part, ("AD", "ZW"), count, ".jpg")


def imagenette(root, patch):
    for part, count in (("train", TRAIN), ("val", TEST)):
        write_class_folders(root / "imagenette2" / part, WNIDS, count, ".JPEG")


def imagenet(root, patch):
    for part, count in (("train", TRAIN), ("val", TEST)):
        write_class_folders(root / part, WNIDS, count, ".JPEG")
    names = {WNIDS[0]: ("tench", "Tinca tinca"), WNIDS[1]: ("English springer",)}
    torch.save((names, []), root / "meta.bin")


def rendered_sst2(root, patch):
    for part, count in (("train", TRAIN), ("test", TEST)):
        folder = root / "rendered-sst2" / part
        write_class_folders(folder, ("negative", "positive"), count, ".png")


def food101(root, patch):
    for part, count in (("train", TRAIN), ("test", TEST)):
        listed = {"waffles": [], "apple_pie": []}  # not sorted, as in the original
        for number in range(count):
            name = ("apple_pie", "waffles")[number % 2]
            listed[name].append(f"{name}/{part}{number}")
            write_image(root / f"food-101/images/{name}/{part}{number}.jpg")
        write_text(root / f"food-101/meta/{part}.json", json.dumps(listed))


def oxford_pet(root, patch):
    folder = root / "oxford-iiit-pet"
    for part, count in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for number in range(count):
            name = ("Abyssinian", "great_pyrenees")[number % 2] + f"_{part}{number}"
            name = name.replace(part, str(len(part)))
            lines.append(f"{name} {number % 2 + 1} {number % 2 + 1} 1")
            write_image(folder / f"images/{name}.jpg")
        write_text(folder / f"annotations/{part}.txt", *lines)


def dtd(root, patch):
    for part, count in (("train", TRAIN), ("test", TEST)):
        names = []
        for number in range(count):
            texture = ("banded", "woven")[number % 2]
            names.append(f"{texture}/{texture}_{part}{number}.jpg")
            write_image(root / "dtd/dtd/images" / names[-1])
        write_text(root / f"dtd/dtd/labels/{part}1.txt", *names)


def flowers102(root, patch):
    folder = root / "flowers-102"
    ids = numpy.arange(1, TRAIN + TEST + 1)
    for number in ids:
        write_image(folder / f"jpg/image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": ids % 3 + 1})
    parts = {"trnid": ids[:TRAIN], "valid": ids[:0], "tstid": ids[TRAIN:]}
    savemat(folder / "setid.mat", parts)
    files = dict(datasets.Flowers102._file_dict)
    for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (file, md5(folder / file))
    patch.setattr(datasets.Flowers102, "_file_dict", files)


def gtsrb(root, patch):
    folder = root / "gtsrb"
    write_class_folders(folder / "GTSRB/Training", ("00000", "00001"), TRAIN, ".ppm")
    rows = ["Filename;ClassId"]
    for number in range(TEST):
        rows.append(f"{number:05d}.ppm;{number % 2}")
        write_image(folder / f"GTSRB/Final_Test/Images/{number:05d}.ppm")
    write_text(folder / "GT-final_test.csv", *rows)


def fgvc_aircraft(root, patch):
    folder = root / "fgvc-aircraft-2013b/data"
    write_text(folder / "variants.txt", "A300", "Cessna 172")
    for part, count in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for number in range(count):
            lines.append(f"{part}{number} {('A300', 'Cessna 172')[number % 2]}")
            write_image(folder / f"images/{part}{number}.jpg")
        write_text(folder / f"images_variant_{part}.txt", *lines)


def caltech101(root, patch):
    folder = root / "caltech101/101_ObjectCategories"
    for number in range(1, 7):
        write_image(folder / f"BACKGROUND_Google/image_{number:04d}.jpg")
        for name in ("ant", "watch"):
            write_image(folder / f"{name}/image_{number:04d}.jpg")


def caltech256(root, patch):
    for number in range(1, 7):
        for label, name in enumerate(("001.ak47", "002.american-flag"), 1):
            write_image(
                root / f"caltech256/256_ObjectCategories/{name}/{label:03d}_{number:04d}.jpg"
            )


def sun397(root, patch):
    write_text(root / "SUN397/ClassName.txt", "/a/abbey", "/b/bar")
    for number in range(TRAIN):
        write_image(root / f"SUN397/{('a/abbey', 'b/bar')[number % 2]}/sun_{number:04d}.jpg")


def stanford_cars(root, patch):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": numpy.array(["Audi", "BMW"], object)})
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part, count in (("train", TRAIN), ("test", TEST)):
        annotations = numpy.zeros(count, [("class", "O"), ("fname", "O")])
        for number in range(count):
            annotations[number] = (number % 2 + 1, f"{part}{number:05d}.jpg")
            write_image(folder / f"cars_{part}/{part}{number:05d}.jpg")
        savemat(folder / files[part], {"annotations": annotations})


def places365(root, patch):
    write_text(root / "categories_places365.txt", "/a/airfield 0", "/b/bar 1")
    lists = {"train-standard": "places365_train_standard.txt", "val": "places365_val.txt"}
    folders = {"train-standard": "data_large_standard", "val": "val_large"}
    meta = dict(datasets.Places365._FILE_LIST_META)
    for part, count in (("train-standard", TRAIN), ("val", TEST)):
        lines = []
        for number in range(count):
            lines.append(f"/{number:08d}.jpg {number % 2}")
            write_image(root / folders[part] / f"{number:08d}.jpg")
        write_text(root / lists[part], *lines)
        meta[part] = (lists[part], md5(root / lists[part]))
    categories = ("categories_places365.txt", md5(root / "categories_places365.txt"))
    patch.setattr(datasets.Places365, "_FILE_LIST_META", meta)
    patch.setattr(datasets.Places365, "_CATEGORIES_META", categories)


def inaturalist(root, patch):
    names = tuple(f"{index:05d}_Animalia_P_C_O_F_G_s{index}" for index in range(2))
    for part, count in (("2021_train", TRAIN), ("2021_valid", TEST)):
        write_class_folders(root / part, names, count, ".jpg")


def omniglot(root, patch):
    folder = root / "omniglot-py"
    names = ("Zulu/character01", "Greek/character01", "Greek/character02")
    write_class_folders(folder / "images_background", names, TRAIN, ".png")
    archive = folder / "images_background.zip"
    archive.write_bytes(b"")
    patch.setattr(datasets.Omniglot, "zips_md5", {"images_background": md5(archive)})


def lfw_people(root, patch):
    folder = root / "lfw-py"
    for name, count in (("Ann_Lee", 8), ("Bo_Ek", 4)):
        for number in range(1, count + 1):
            write_image(folder / f"lfw_funneled/{name}/{name}_{number:04d}.jpg")
    write_text(folder / "lfw-names.txt", "Ann_Lee 8", "Bo_Ek 4")
    write_text(folder / "people.txt", "2", "1", "Ann_Lee\t8", "1", "Bo_Ek\t4")
    write_text(folder / "lfw-funneled.tgz", "")
    sums = {name: md5(folder / name) for name in ("lfw-names.txt", "people.txt")}
    archive = ("lfw_funneled", "lfw-funneled.tgz", md5(folder / "lfw-funneled.tgz"))
    patch.setattr(datasets.LFWPeople, "checksums", sums)
    patch.setattr(datasets.LFWPeople, "file_dict", {"funneled": archive})


def clevr(root, patch):
    folder = root / "clevr/CLEVR_v1.0"
    for part, count in (("train", TRAIN), ("val", TEST)):
        scenes = []
        for number in range(count):
            name = f"CLEVR_{part}_{number:06d}.png"
            scenes.append({"image_filename": name, "objects": [{}] * (3 + number % 4)})
            write_image(folder / f"images/{part}/{name}")
        write_text(folder / f"scenes/CLEVR_{part}_scenes.json", json.dumps({"scenes": scenes}))


WRITERS: dict[str, Callable] = {
    "CLEVRClassification": clevr,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "Country211": country211,
    "DTD": dtd,
    "EMNIST": emnist,
    "EuroSAT": eurosat,
    "FER2013": fer2013,
    "FGVCAircraft": fgvc_aircraft,
    "Flowers102": flowers102,
    "Food101": food101,
    "GTSRB": gtsrb,
    "INaturalist": inaturalist,
    "ImageNet": imagenet,
    "Imagenette": imagenette,
    "KMNIST": kmnist,
    "LFWPeople": lfw_people,
    "Omniglot": omniglot,
    "OxfordIIITPet": oxford_pet,
    "Places365": places365,
    "QMNIST": qmnist,
    "RenderedSST2": rendered_sst2,
    "SEMEION": semeion,
    "STL10": stl10,
    "SUN397": sun397,
    "SVHN": svhn,
    "StanfordCars": stanford_cars,
    "USPS": usps,
}


def write_torchvision(name: str, root: Path, patch) -> None:
    """Writes a data set below `root`, and makes torchvision expect the checksums of its files."""
    root.mkdir(parents=True, exist_ok=True)
    WRITERS[name](root, patch)
