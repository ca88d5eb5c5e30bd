"""The variable that names plugins which run already, apart from `reattach`: to look for it must cost nothing."""

REATTACH_VARIABLE = "HYBRIDLOAD_REATTACH"
