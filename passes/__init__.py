"""The pass library: import it as n2nfx.passes."""

if __name__ != "n2nfx.passes":
    raise ImportError(f"import n2nfx.passes, not {__name__}: this folder is installed inside n2nfx")
