"""Public address of the import hook."""

from nnsight_dsl.blocks.import_hook import ImportHook as ImportHook
from nnsight_dsl.blocks.import_hook import compile_module as compile_module
from nnsight_dsl.blocks.import_hook import install_import_hook as install_import_hook
