"""Writes a source that includes other sources, so that they are compiled as one translation unit."""

def _unity_source_impl(ctx):
    includes = ['#include "{}"  // IWYU pragma: keep\n'.format(source.short_path) for source in ctx.files.srcs]
    ctx.actions.write(ctx.outputs.out, "".join(includes))

unity_source = rule(
    implementation = _unity_source_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cc"], mandatory = True),
        "out": attr.output(mandatory = True),
    },
)
