"""What was made before engines were a table is read as it was."""

import json
from pathlib import Path

import pytest

from quept.artifact import Artifact
from quept.engines import engine_class
from quept.engines.bitsandbytes import BitsAndBytes

ASSETS = Path(__file__).parents[2] / "assets"
IDENTITIES = {
    "easy-vqa/weight-only": "0785e18a88e352888aca9845d37da3c8992d741cecbd9962828d7be7f0e29522",
    "fashion-vit/weight-act": "f8ef07854f3b502a95430c1ac8142eb46de96fe286dc1af59903a552d2e54f1e",
    "fashion-vit/weight-only": "6a53156ee68f016c9bd4d0c9e19ecef4b81e0a82dc5a8512d743593c6718f93b",
    "smollm2-135m/mobiquant": "a1702ca4824452863f04e7e69ad09429e3a9542bfecedcfc8fa205cc37ee261b",
    "smollm2-135m/weight-act": "dd7c53fbb168bd943f22e5a5650f28059ee80fa2fb264ab8728a8c24a82e7fad",
    "smollm2-135m/weight-only": "50cc942b5c1de5369b95d9a798091d5ecdab1566efb4779752b7563ef8007c65",
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_shipped_artifacts_keep_their_identity_and_their_bytes(name, tmp_path):
    artifact = Artifact.open(ASSETS / name)
    assert type(artifact.engine) is engine_class(artifact.manifest.method)
    assert artifact.identity == artifact.weights_id == IDENTITIES[name]
    again = artifact.store(tmp_path / "again")
    assert again.identity == artifact.identity
    for file in artifact.manifest.files:
        assert (tmp_path / "again" / file).read_bytes() == (ASSETS / name / file).read_bytes()


def test_shipped_results_of_other_tools_are_found_under_their_keys():
    shipped = json.loads((ASSETS / "smollm2-135m/baselines.json").read_text())
    ours = {BitsAndBytes().key(setting) for setting in ("nf4", "int8")}
    assert {row["plan"] for row in shipped["results"]} == ours
