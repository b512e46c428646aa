"""Products as rows: memory, bandwidth and rates from data sheets. The first row of a target is its default.

Memory is what programs see (``nvidia-smi``, ``rocm-smi``), which is less than the number on the box where a card keeps
error-correcting codes or firmware in it. Rates are dense, with float32 or int32 sums: data sheets like to print twice
that (sparse), and GeForce cards add up float16 products in float32 at half their float16 rate.
"""

from __future__ import annotations

from isobit.targets.spec import Board

_MIB = 1 << 20
_GIB = 1 << 30


def _gpu(
    name: str,
    target: str,
    memory_mib: int,
    gigabytes_per_second: float,
    power: int | None,
    source: str,
    *aliases: str,
    **rates: float,
) -> Board:
    memory, bandwidth = memory_mib * _MIB, gigabytes_per_second * 1e9
    return Board(name, target, memory, bandwidth, tuple(rates.items()), power, source, aliases)


def _cpu(
    name: str,
    target: str,
    cores: int,
    gigahertz: float,
    memory_gib: int,
    gigabytes_per_second: float,
    flops_per_clock: int,
    int8_per_clock: int,
    source: str,
    *aliases: str,
) -> Board:
    """A CPU: operations per clock and core times cores and sustained clock; float formats run as float32."""
    f32, i8 = (cores * gigahertz * per_clock / 1000 for per_clock in (flops_per_clock, int8_per_clock))
    rates = (("f32", f32), ("f16", f32), ("i8", i8))
    return Board(name, target, memory_gib * _GIB, gigabytes_per_second * 1e9, rates, None, source, aliases)


_GA102 = "NVIDIA Ampere GA102 GPU Architecture white paper, appendix tables"
_ADA = "NVIDIA Ada GPU Architecture white paper, appendix tables"
_TURING = "NVIDIA Turing GPU Architecture white paper, appendix tables"
_GEFORCE_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture white paper, appendix tables"
_MI300 = "AMD Instinct MI300 series data sheets"
_MI350 = "AMD Instinct MI350 series data sheets"


def _sheet(name: str) -> str:
    return f"NVIDIA {name} data sheet"


_ROWS = (
    # name, target, MiB that programs see, GB/s, watts, source, aliases; dense TFLOP/s or TOP/s by rate class
    _gpu("V100 32GB", "sm_70", 32510, 900, 300, _sheet("Tesla V100"), "v100", f32=15.7, f16=125),
    _gpu("T4", "sm_75", 15360, 320, 70, _sheet("T4"), f32=8.1, f16=65, i8=130, i4=260),
    _gpu("RTX 2080 Ti", "sm_75", 11264, 616, 260, _TURING, f32=14.2, f16=56.9, i8=227.7, i4=455.4),
    _gpu("Quadro RTX 8000", "sm_75", 48601, 672, 260, _TURING, f32=16.3, f16=130.5, i8=261, i4=522),
    _gpu("A100 80GB", "sm_80", 81920, 2039, 400, _sheet("A100"), "a100", "a100sxm", f32=19.5, f16=312, i8=624, i4=1248),
    _gpu("A100 40GB", "sm_80", 40960, 1555, 400, _sheet("A100"), f32=19.5, f16=312, i8=624, i4=1248),
    _gpu("A30", "sm_80", 24576, 933, 165, _sheet("A30"), f32=10.3, f16=165, i8=330, i4=661),
    _gpu("RTX A6000", "sm_86", 49140, 768, 300, _GA102, f32=38.7, f16=154.8, i8=309.7, i4=619.3),
    _gpu("RTX A5000", "sm_86", 24564, 768, 230, _sheet("RTX A5000"), f32=27.8, f16=111.1, i8=222.2),
    _gpu("RTX A4000", "sm_86", 16376, 448, 140, _sheet("RTX A4000"), f32=19.2, f16=76.7, i8=153.4),
    _gpu("A40", "sm_86", 46068, 696, 300, _sheet("A40"), f32=37.4, f16=149.7, i8=299.3, i4=598.7),
    _gpu("A10", "sm_86", 23028, 600, 150, _sheet("A10"), "a10g", f32=31.2, f16=125, i8=250, i4=500),
    _gpu("RTX 3090", "sm_86", 24576, 936, 350, _GA102, f32=35.6, f16=71, i8=284, i4=568),
    _gpu("RTX 3080", "sm_86", 10240, 760, 320, _GA102, f32=29.8, f16=59.5, i8=238, i4=476),
    _gpu("RTX 3060", "sm_86", 12288, 360, 170, "NVIDIA GeForce RTX 3060 page; 512 half-precision operations per clock"
         " and SM with float32 sums (GA102 white paper)", f32=12.7, f16=25.5, i8=102),
    _gpu("Jetson AGX Orin 64GB", "sm_87", 62800, 204.8, 60, "NVIDIA Jetson AGX Orin Series Technical Brief",
         "orin", "jetsonorin", "agxorin", f32=5.3, f16=42.5, i8=85),
    _gpu("L4", "sm_89", 23034, 300, 72, _sheet("L4"), f32=30.3, f16=121, f8=242, i8=242),
    _gpu("L40S", "sm_89", 46068, 864, 350, _sheet("L40S"), f32=91.6, f16=362, f8=733, i8=733),
    _gpu("RTX 6000 Ada", "sm_89", 49140, 960, 300, _ADA, f32=91.1, f16=364.2, f8=728.5, i8=728.5, i4=1457),
    _gpu("RTX 4090", "sm_89", 24564, 1008, 450, _ADA, f32=82.6, f16=165.2, f8=330.3, i8=660.6, i4=1321.2),
    _gpu("RTX 4080", "sm_89", 16376, 716.8, 320, _ADA, f32=48.7, f16=97.5, f8=194.9, i8=389.9, i4=779.8),
    _gpu("H100 SXM", "sm_90", 81559, 3350, 700, _sheet("H100"), "h100", "h10080gbhbm3",
         f32=66.9, f16=989.4, f8=1978.9, i8=1978.9),
    _gpu("H100 PCIe", "sm_90", 81559, 2000, 350, _sheet("H100"), f32=51.2, f16=756, f8=1513, i8=1513),
    _gpu("H200", "sm_90", 143771, 4800, 700, _sheet("H200"), f32=66.9, f16=989.4, f8=1978.9, i8=1978.9),
    _gpu("H20", "sm_90", 97871, 4000, 400, _sheet("H20"), f32=44, f16=148, f8=296, i8=296),
    _gpu("B200", "sm_100", 183359, 7700, 1000, "NVIDIA HGX B200 data sheet, divided by 8",
         f32=75, f16=2250, f8=4500, i8=4500, f6=4500, f4=9000),
    _gpu("B300", "sm_103", 275040, 7700, 1100, "NVIDIA HGX B300 data sheet, divided by 8",
         "gb300", f32=75, f16=2250, f8=4500, i8=165, f6=4500, f4=13500),
    _gpu("Jetson AGX Thor", "sm_110", 125800, 273, 130, "NVIDIA Jetson Thor Series data sheet (4-bit rate; the others"
         " in its architecture's proportions)", "thor", "jetsonthor",
         f32=8.1, f16=258, f8=517, i8=517, f6=517, f4=1035),
    _gpu("RTX 5090", "sm_120", 32607, 1792, 575, _GEFORCE_BLACKWELL, f32=104.8, f16=209.5, f8=419, i8=838, f4=1676),
    _gpu("RTX 5080", "sm_120", 16303, 960, 360, _GEFORCE_BLACKWELL, f32=56.3, f16=112.6, f8=225.1, i8=450.2, f4=900.4),
    _gpu("RTX PRO 6000 Blackwell", "sm_120", 97887, 1792, 600, "NVIDIA RTX Blackwell PRO GPU Architecture white paper",
         "rtxpro6000", f32=125, f16=503.8, f8=1007.6, i8=1007.6, f4=2015.2),
    _gpu("DGX Spark", "sm_121", 122570, 273, 140, "NVIDIA DGX Spark data sheet (4-bit rate; the others in its"
         " architecture's proportions)", "gb10", f32=31, f16=125, f8=250, i8=250, f4=500),
    _gpu("MI210", "gfx90a", 65520, 1638, 300, "AMD Instinct MI200 series data sheets", f32=22.6, f16=181, i8=181),
    _gpu("MI250X (one of two dies)", "gfx90a", 65520, 1638, 280, "AMD Instinct MI200 series data sheets, halved: each"
         " die is a device of its own", "mi250x", "mi250", f32=23.9, f16=191.5, i8=191.5),
    _gpu("MI300X", "gfx942", 196592, 5300, 750, _MI300, f32=163.4, f16=1307.4, f8=2614.9, i8=2614.9),
    _gpu("MI325X", "gfx942", 262128, 6000, 1000, _MI300, f32=163.4, f16=1307.4, f8=2614.9, i8=2614.9),
    _gpu("MI300A", "gfx942", 131056, 5300, 550, _MI300, f32=122.6, f16=980.6, f8=1961.2, i8=1961.2),
    _gpu("MI355X", "gfx950", 294896, 8000, 1400, _MI350,
         f32=157.3, f16=2516.6, f8=5033.2, i8=5033.2, f4=10066),
    _gpu("MI350X", "gfx950", 294896, 8000, 1000, _MI350, f32=144.2, f16=2306.9, f8=4613.7, i8=4613.7, f4=9227.5),
    _gpu("RX 7900 XTX", "gfx1100", 24560, 960, 355, "AMD Radeon RX 7900 XTX page",
         f32=61.4, f16=122.8, i8=122.8, i4=245.6),
    _gpu("Radeon PRO W7900", "gfx1100", 49136, 864, 295, "AMD Radeon PRO W7900 data sheet",
         f32=61.3, f16=122.6, i8=122.6),
    _gpu("RX 9070 XT", "gfx1201", 16304, 644.6, 304, "AMD Radeon RX 9070 XT page",
         f32=48.7, f16=195, f8=389, i8=389, i4=779),
    _gpu("Radeon AI PRO R9700", "gfx1201", 32624, 644.6, 300, "AMD Radeon AI PRO R9700 page",
         "r9700", f32=47.8, f16=191, f8=383, i8=383, i4=766),
    # name, target, cores, sustained GHz, GiB, GB/s, float32 and int8 operations per clock and core, source
    _cpu("laptop (8 cores, DDR4)", "cpu-avx2", 8, 3.5, 16, 51.2, 32, 85,
         "AMD Zen 3 software optimization guide: two 256-bit"
         " multiply-adds a clock; two channels of DDR4-3200", "laptop", "ryzen5800x"),
    _cpu("Xeon Gold 6348", "cpu-avx512", 28, 2.6, 256, 204.8, 64, 256,
         "Intel Xeon Gold 6348 page; eight channels of DDR4-3200",
         "icelake", "xeon6348"),
    _cpu("Xeon Platinum 8480+", "cpu-amx", 56, 2.6, 512, 307.2, 64, 256,
         "Intel Xeon Platinum 8480+ page; eight channels of"
         " DDR5-4800", "sapphirerapids", "xeon8480"),
    _cpu("Graviton3", "cpu-neon", 64, 2.6, 128, 307.2, 32, 128,
         "Arm Neoverse V1 software optimization guide; eight channels of"
         " DDR5-4800", "c7g"),
    _cpu("Ampere Altra Q80-30", "cpu-neon", 80, 3.0, 256, 204.8, 16, 128,
         "Arm Neoverse N1 software optimization guide; eight"
         " channels of DDR4-3200", "altra"),
    _cpu("Raspberry Pi 5 16GB", "cpu-neon", 4, 2.4, 16, 17.1, 16, 128,
         "Arm Cortex-A76 software optimization guide; LPDDR4X-4267"
         " on 32 bits", "raspberrypi5", "rpi5"),
)  # fmt: skip

BOARDS: dict[str, Board] = {row.name: row for row in _ROWS}
