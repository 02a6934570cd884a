"""What a rank says of itself: rates, and how busy its GPU is."""

import pytest

from macluster.engine.rank.metrics import Rate, apple_gpu

# The part of what `ioreg -r -d 1 -w 0 -c IOAccelerator` prints on a Mac that tells how busy it is.
IOREG = """+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x100000a3f, registered, matched>
    {
      "IOClass" = "AGXAcceleratorG14X"
      "PerformanceStatistics" = {"In use system memory (driver)"=0,"Alloc system memory"=4519,\
"Tiler Utilization %"=12,"recoveryCount"=0,"Renderer Utilization %"=36,"Device Utilization %"=37}
      "IOAccelerator" = Yes
    }
"""


def test_a_rate_is_the_growth_since_the_last_look() -> None:
    rate = Rate()
    assert rate.of(100, 5.0) is None
    assert rate.of(130, 7.0) == pytest.approx(15)
    assert rate.of(130, 7.0) is None  # no time has passed
    assert rate.of(130, 8.0) == 0


def test_a_mac_says_how_busy_its_gpu_is() -> None:
    assert apple_gpu(IOREG) == 37
    assert apple_gpu("") is None
    assert apple_gpu(None) is None
