"""The notebooks as chapters of the book: links, folded code, and words in place of pictures."""

import re
from pathlib import Path

import nbformat

from dpr.experiments.report import Rendered

LONGEST_SHOWN = 12  # lines of code; longer cells can be unfolded
BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)


def write_chapter(rendered: Rendered, folder: Path) -> Path:
    """Write a committed notebook as a chapter; nothing is executed.

    Args:
        rendered: The notebook.
        folder: Where the chapter is written, under the notebook's name.

    Returns:
        The chapter's file.
    """
    notebook = nbformat.read(rendered.path, as_version=4)
    first = notebook.cells[0]
    links = f"[Open in Colab]({rendered.colab}) · [the notebook's file]({rendered.source})"
    first.source = re.sub(r"^(# .*)$", rf"\1\n\n{links}", first.source, count=1, flags=re.MULTILINE)
    heading = first.source.splitlines()[0].lstrip("# ")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
        elif cell.cell_type == "code":
            if len(cell.source.splitlines()) > LONGEST_SHOWN:
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
            cell.metadata["mystnb"] = {"image": {"alt": picture_in_words(heading, cell)}}
    path = folder / rendered.path.name
    nbformat.write(notebook, path)
    return path


def picture_in_words(heading: str, cell: nbformat.NotebookNode) -> str:
    """What stands for a cell's picture where it cannot be seen.

    Args:
        heading: The heading that the cell stands under.
        cell: An executed cell.

    Returns:
        The heading, and what the cell says beside the picture.
    """
    return " ".join([f"Figure: {heading}", *bold_outputs(cell)])


def bold_outputs(cell: nbformat.NotebookNode) -> list[str]:
    """What stands in bold in the markdown that an executed cell put out."""
    texts = [output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    return [" ".join(found.split()) for text in texts for found in BOLD.findall("".join(text))]
