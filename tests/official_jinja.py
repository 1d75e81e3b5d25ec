"""Official chat templates that no package carries, written anew after the model cards."""

LLAMA2 = """\
{%- set opening = '' -%}{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set opening = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' -%}{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role == 'user' -%}
{{- bos_token + '[INST] ' + ((opening if loop.first else '') + message.content).strip() + ' [/INST]' -}}
{%- else -%}
{{- ' ' + message.content.strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}"""
OLMO2 = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>\n' + message.content + eos_token -}}{%- if not loop.last -%}{{- '\n' -}}{%- endif -%}
{%- else -%}
{{- '<|' + message.role + '|>\n' + message.content + '\n' -}}
{%- endif -%}
{%- if loop.last and add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}
{%- endfor -%}"""
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
ALPACA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- else -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.\n\n' -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
{%- if message.role == 'user' -%}
{{- '### Instruction:\n' + message.content + '\n\n' -}}
{%- else -%}
{{- '### Response:\n' + (message.content + eos_token) -}}{%- if not loop.last -%}{{- '\n\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\n' -}}{%- endif -%}"""
PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- raise_exception('no system message') -}}{%- endif -%}
{{- message.content -}}{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}"""
TORCHLLMS = """\
{%- for message in messages -%}
{%- set role = 'ipython' if message.role == 'tool' else message.role -%}
{{- '<|im_start|>' + role + '<|im_start|>\n\n' + message.content | trim + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_start|>\n\n' -}}{%- endif -%}"""
STORYTELLER = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- raise_exception('no system message') -}}{%- endif -%}
{%- if message.role == 'user' -%}{{- message.content.strip() -}}
{%- else -%}{{- bos_token + message.content.strip() + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bos_token -}}{%- endif -%}"""
