"""A choice among texts, token by token."""

from collections.abc import Iterable, Sequence


class Node(dict):
    """Token -> the node after it. </s> is a token like others, and the node after it has no further one."""

    def way_out(self) -> list[int]:
        """The tokens that must come here because nothing else can, up to the next choice or the end."""
        tokens, node = [], self
        while len(node) == 1:
            ((token, node),) = node.items()
            tokens.append(token)
        return tokens

    def after(self, tokens: Iterable[int]) -> "Node":
        """The node that the tokens lead to."""
        node = self
        for token in tokens:
            node = node[token]
        return node


def trie(texts: Iterable[Sequence[int]], eos: int) -> Node:
    """The root of given token sequences, each followed by </s>."""
    root = Node()
    for tokens in texts:
        node = root
        for token in (*map(int, tokens), eos):
            node = node.setdefault(token, Node())
    return root


def depth(node: Node) -> int:
    """Tokens on the longest way from a node to an end."""
    deepest, left = 0, [(node, 0)]
    while left:
        node, above = left.pop()
        deepest = max(deepest, above)
        left += [(after, above + 1) for after in node.values()]
    return deepest
