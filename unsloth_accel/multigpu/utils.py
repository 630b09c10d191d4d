"""Names of the older package's `unsloth_multigpu.utils`."""

from .asked import MultiGPUConfig as MultiGPUConfig
from .config_manager import ConfigManager as ConfigManager
from .config_manager import get_default_config as get_default_config
from .ddp_logging import DDPLogger as DDPLogger
from .ddp_logging import get_ddp_logger as get_ddp_logger
from .ddp_logging import info_rank0 as info_rank0
from .ddp_logging import is_main_process as is_main_process
from .ddp_logging import warning_rank0 as warning_rank0
from .device_manager import DeviceManager as DeviceManager
from .gone import missing as _missing


def __getattr__(name: str) -> None:
    raise _missing(__name__, name)
