"""Finding the encoding of text: telling Chinese from other text with valid Chinese bytes."""

from __future__ import annotations

import pytest

from cnnlab.io.encodings import text_encoding

KOREAN = "번호,이름\n고양이,강아지,비행기,자동차,새,사슴,개구리,말,배,트럭,학생,과제,제출,파일,정답\n"
JAPANESE = "番号,名前\n1,ねこ\n2,カエル\n3,飛行機\n"


@pytest.mark.parametrize(
    "content",
    [
        "编号,标签\n1,猫\n2,狗\n",
        "编号\n" + "猫\n狗\n" * 5000,
        "学生の猫,约翰·史密斯\n",
        "张三,李四,王五,欧阳娜娜\n" * 10,
    ],
)
def test_chinese_encodings_are_detected(content: str) -> None:
    assert text_encoding(content.encode("gbk")) == "gb18030"
    assert text_encoding(content.encode()) == "utf-8-sig"


@pytest.mark.parametrize(("content", "codec"), [(KOREAN, "cp949"), (JAPANESE, "euc_jp"), (KOREAN, "euc_kr")])
def test_korean_and_japanese_are_not_read_as_chinese(content: str, codec: str) -> None:
    content.encode(codec).decode("gb18030")  # the bytes are valid GB 18030
    assert text_encoding(content.encode(codec)) == "utf-8-sig"
