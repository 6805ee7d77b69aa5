"""The classifier that comes along: read from where it lies, with pictures to measure it on."""

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, zoo
from quept.data.fashion_mnist import CLASSES
from quept.evaluate import accuracy, image_reference, stored_images

pytestmark = pytest.mark.slow

HERE = zoo.MODELS["fashion-vit"].source.is_dir()


@pytest.mark.skipif(not HERE, reason="assets/fashion-vit is not in this checkout")
def test_it_opens_by_name_and_classifies_its_own_pictures(tmp_path):
    elastic = ElasticModel.open("fashion-vit:rtn", device="cpu", dtype=torch.float32)
    assert zoo.model_folder("fashion-vit") == zoo.MODELS["fashion-vit"].source
    assert (elastic.title, elastic.kind, elastic.vision.labels) == (
        "Fashion ViT, 1.2 M parameters",
        "vision",
        CLASSES,
    )
    images = stored_images(elastic.vision.images, elastic.vision)
    reference = image_reference(elastic, images, tmp_path)
    last = list(accuracy(elastic.view(PrecisionPlan.uniform(8)), images, reference))[-1]
    assert len(images) == last.images == 1000 and last.top1_ref > 0.9 and last.same_top > 0.98


@pytest.mark.skipif(HERE, reason="assets/fashion-vit is here")
def test_where_it_is_missing_a_sentence_says_so():
    with pytest.raises(zoo.SourceError, match="comes with a checkout"):
        zoo.model_folder("fashion-vit")
