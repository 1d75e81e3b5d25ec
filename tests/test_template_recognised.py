"""Which template a model has is found by what its own Jinja writes, and hostile Jinja harms nobody."""

import pytest
from official import OFFICIAL, SOURCE_OF, chatml_template, mistral_template, tokenizer, trl_template
from test_template_official import options_of

from tutelage.errors import UserError
from tutelage.text.template import Template
from tutelage.text.template_file import built_in_names
from tutelage.text.tokenizer import Tokenizer

NAME_IT = (
    "name the template it was trained with by --template_config: "
    f"one of {', '.join(built_in_names())}, or the path of a YAML file"
)

OWN = {
    "smollm2": ("smollm2", lambda: tokenizer("smollm2").chat_template),
    "llama3_instruct": ("llama3", lambda: trl_template("llama3")),
    "llama3_instruct, always asking for a reply": ("llama3", lambda: tokenizer("llama3").chat_template),
    "llama3_instruct, with generation marks": ("llama3", lambda: trl_template("llama3_training")),
    "llama3.1_instruct": ("llama3_1", lambda: trl_template("llama3_1")),
    "llama3_instruct, in a package of Llama 3.1": ("llama3_1", lambda: tokenizer("llama3_1").chat_template),
    "qwen2.5_instruct": ("qwen", lambda: trl_template("qwen2_5")),
    "chatml": ("qwen", chatml_template),
    "mistral_instruct": ("mistral_v3", mistral_template),
}

# These ask for a reply behind one, or forget the system text there, so that a whole conversation is another.
NOT_ALWAYS = ["llama3_instruct, always asking for a reply", "mistral_instruct"]


def with_template(source: str, jinja: str | None) -> Tokenizer:
    """The tokenizer with another chat template, sharing all that takes time to build."""
    made = object.__new__(Tokenizer)
    made.__dict__.update(tokenizer(source).__dict__, chat_template=jinja)
    return made


@pytest.mark.parametrize("case", OWN)
def test_a_models_own_template_is_recognised(case):
    source, jinja = OWN[case]
    template = Template.recognise(with_template(source, jinja()))
    assert template.name == case.split(",")[0]
    exported = template.export_jinja(with_template(source, jinja()))
    assert exported == (template.jinja if case in NOT_ALWAYS else jinja())


@pytest.mark.parametrize("case", OFFICIAL)
def test_every_official_template_is_recognised(case):
    official = OFFICIAL[case]
    made, options = with_template("smollm2", official.jinja()), options_of(official)
    made.__dict__["named"] = {name: options[name] for name in ("bos_token", "eos_token")}
    expected = "qwen3" if official.ours == "qwen3_no_thinking" else official.ours
    assert Template.recognise(made).name == expected


@pytest.mark.parametrize("name", SOURCE_OF)
def test_our_own_jinja_is_recognised(name):
    assert Template.recognise(with_template(SOURCE_OF[name], Template.load(name).jinja)).name == name


def with_tools_in(jinja: str, wording: str) -> str:
    return "{% if tools %}{{ '" + wording + "' ~ (tools | tojson) }}{% endif %}" + jinja


def test_a_built_in_that_refuses_tools_comes_before_one_that_tells_of_them_otherwise():
    """Conversations without tools are then written as ever, and those with some are not written wrongly."""
    source = with_template("qwen", with_tools_in(chatml_template(), "You have: "))
    template = Template.recognise(source)
    assert template.name == "chatml" and template.export_jinja(source) == source.chat_template


def test_a_built_in_that_tells_of_tools_otherwise_is_not_taken():
    source = with_template("qwen", with_tools_in(trl_template("qwen2_5"), "Call these: "))
    with pytest.raises(UserError, match="none of the built-in ones"):
        Template.recognise(source)
    template = Template.load("qwen2.5")
    assert template.export_jinja(source) == template.jinja


def test_a_model_that_is_told_nothing_of_tools_does_not_carry_its_own_jinja():
    """It would forget the tools that the built-in has trained it with."""
    source = with_template("qwen", "{% set tools = none %}" + trl_template("qwen2_5"))
    template = Template.recognise(source)
    assert template.name == "qwen2.5_instruct" and template.export_jinja(source) == template.jinja


def test_another_template_is_exported_in_our_own_jinja():
    template = Template.load("chatml")
    assert template.export_jinja(with_template("smollm2", None)) == template.jinja
    assert template.export_jinja(tokenizer("smollm2")) == template.jinja


REFUSED = {
    "none": (None, "the model has no chat template of its own"),
    "another": (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "the model's own chat template is none of the built-in ones",
    ),
    "forgetting the system text": (
        "{% for message in messages %}{% if message['role'] != 'system' or messages[-1]['role'] == 'user' %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "the model's own chat template is none of the built-in ones",
    ),
    "raising": ("{{ raise_exception('no') }}", "the model's own chat template is none of the built-in ones"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_is_not_recognised_is_refused_with_what_to_do(case):
    jinja, reason = REFUSED[case]
    with pytest.raises(UserError) as refused:
        Template.recognise(with_template("smollm2", jinja))
    own = "; or use it as it is with --template_config model" if jinja else ""
    assert str(refused.value) == f"{reason}; {NAME_IT}{own}"


HOSTILE = {
    "endless output": (
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "its output grew past 100",
    ),
    "endless memory": (
        "{{ ('x' * 99999999999) | length }}",
        "characters, or its memory past 1024 MiB",
    ),
    "not Jinja": ("{% for %}", "it is not valid Jinja: "),
    "Python": ("{{ ''.__class__.__mro__ }}", "none of the built-in ones"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_harms_nobody(case):
    jinja, reason = HOSTILE[case]
    with pytest.raises(UserError) as refused:
        Template.recognise(with_template("smollm2", jinja))
    assert reason in str(refused.value)


@pytest.mark.slow
def test_a_template_that_never_ends_is_stopped():
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}"
    with pytest.raises(
        UserError, match="cannot be rendered: it (was stopped, for it took too much|is not done after)"
    ):
        Template.recognise(with_template("smollm2", loop))
