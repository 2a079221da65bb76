"""The BPE of SentencePiece as merges: pieces have scores, and the pair that makes the best piece is joined first."""

from collections.abc import Mapping

SPACE = "▁"
"""How SentencePiece writes a space, U+2581."""


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the merges, first one first, by which BPE cuts text as the scores do (arXiv 1808.06226).

    SentencePiece joins the two neighbours whose union is the piece of the highest score, the leftmost of equals. Every
    way to cut a piece into two others is therefore a merge, ranked by the score of the piece. Cuts of one piece have
    one score; a list must order them, and the pair of better parts (earlier in `scores`) comes first.

    Args:
      scores: piece -> score, in the order of the vocabulary; only what text may be cut into.
    """
    rank = {piece: number for number, piece in enumerate(scores)}
    merges = [
        (-score, rank[piece[:cut]], rank[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    ]
    return [(left, right) for *_, left, right in sorted(merges)]
