"""Where the figures of the project's own pages come from: nothing here is part of the package, or needed to use it."""
