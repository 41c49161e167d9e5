"""The parts that the aspects that check sources share: which sources are checked, and how a source is compiled."""

_SOURCES = ["cc", "cpp", "cxx"]

def is_checked(target, rule):
    """Whether a target has C++ sources of this repository that clang can compile.

    Left out are other repositories, generated code (compiled with -w), and targets tagged "no-clang".
    """
    if CcInfo not in target or not hasattr(rule.files, "srcs") or not hasattr(rule.attr, "copts"):
        return False
    return not target.label.workspace_root and "-w" not in rule.attr.copts and "no-clang" not in rule.attr.tags

def sources_of(rule):
    """The files that people wrote: of a library that is compiled as one unit, each of the unit's sources."""
    files = rule.files.srcs + getattr(rule.files, "textual_hdrs", [])
    return [file for file in files if file.extension in _SOURCES and file.is_source]

def units_of(rule):
    """The files that the compiler is called with: of a library that is compiled as one unit, only the unit."""
    return [file for file in rule.files.srcs if file.extension in _SOURCES]

def headers_of(rule, context):
    """The files that a source may include, as a list.

    Sources of units that the rule depends on are headers by name only: with them, a change to one source would check
    everything above it anew.
    """
    own = getattr(rule.files, "textual_hdrs", [])
    return own + [file for file in context.headers.to_list() if file.extension not in _SOURCES]

def compile_flags(rule, context):
    """The rule's language, definitions and include paths, as clang takes them."""
    flags = ["-x", "c++", "-std=c++20"]
    flags += ["-D" + define for define in context.defines.to_list() + context.local_defines.to_list()]
    flags += ["-iquote" + path for path in context.quote_includes.to_list()]
    flags += ["-isystem" + path for path in context.system_includes.to_list()]
    flags += ["-I" + path for path in context.includes.to_list()]
    return flags + [copt for copt in rule.attr.copts if copt.startswith(("-I", "-D"))]

def warning_flags(rule):
    """The warnings that the rule is compiled with, without making them errors."""
    return [copt for copt in rule.attr.copts if copt.startswith("-W") and copt != "-Werror"]
