"""What the completions are like: lengths, languages, stages, second thoughts, and signs of earning without learning."""

from collections.abc import Mapping, Sequence

from megatron_rl.analysis.completions import Seen, drawn_in_training
from megatron_rl.analysis.recorded import Recorded
from megatron_rl.analysis.report.blocks import Block, bars, chart, heading, line, section, table
from megatron_rl.analysis.studies import aha, difficulty, hacking, languages, lengths, stages
from megatron_rl.rewards.terms.social.sip import NAMES

SEEN = Mapping[str, Sequence[Seen]]  # of each run, by its name
COVERED = 0.25  # mean share of the stages, from which on the stages are drawn
WHOLE = {"all": "all four stages", "order": "neighbours in order", "faithful": "answer faithful to the reasoning"}
SIGN = {True: "yes", False: "no", None: "cannot be told"}


def behaviour(runs: Sequence[Recorded], seen: SEEN) -> Block:
    """Each study of each run; every chart names its run where there are several."""
    blocks: list[Block | None] = []
    several = len(runs) > 1
    for run in runs:
        own = list(seen[run.name])
        of = f" of {run.name}" if several else ""
        found = [*_lengths(own), *_difficulty(own), *_languages(own), *_stages(own), _aha(own)]
        if own:
            blocks += [heading(f"Completions{of}"), *found]
        rows = [[sign.name, SIGN[sign.found], sign.text] for sign in hacking.signs(run)]
        blocks.append(table(["sign", "found", "numbers"], rows, f"Signs of reward hacking{of}", left=3))
    return section("behaviour", "Behaviour", blocks)


def _lengths(seen: list[Seen]) -> list[Block | None]:
    drawn = drawn_in_training(seen)
    of = lengths.unit(drawn or seen)
    found: list[Block | None] = []
    if drawn:
        first, last = min(one.step for one in drawn), max(one.step for one in drawn)
        tenth = (last - first) / 10
        groups = {
            "first tenth of the steps": [lengths.length(one, of) for one in drawn if one.step <= first + tenth],
            "last tenth": [lengths.length(one, of) for one in drawn if one.step >= last - tenth],
        }
        shape = lengths.distribution({name: values for name, values in groups.items() if values})
        middles = [(a + b) / 2 for a, b in zip(shape["edges"], shape["edges"][1:], strict=False)]
        series = [bars(name, middles, shares, i) for i, (name, shares) in enumerate(shape["shares"].items())]
        found.append(chart("Length distribution", series, "Of training.", of, "share", "bars", percent=True))
        moved = lengths.over_time(seen, of)
        mean = line("mean, with 80 % of all", moved["steps"], moved["mean"], 0, (moved["low"], moved["high"]))
        right = line("right", moved["steps"], moved["right"], 2)
        wrong = line("wrong", moved["steps"], moved["wrong"], 1)
        found.append(chart("Length over the steps", [mean, right, wrong], "Of training.", y=of))
    found.append(_against_score(seen, of))
    return found


def _against_score(seen: list[Seen], of: lengths.Of) -> Block | None:
    """DeepEnlighten's picture: ten bins of equal width, and the regression over all completions."""
    result = lengths.against_score(seen, of)
    full = [one for one in result["bins"] if "mean" in one]
    if len(full) < 2:
        return None
    text = [f"{one['low']:.0f} to {one['high']:.0f}: {one['count']:,.0f} completions" for one in full]
    middles = [(one["low"] + one["high"]) / 2 for one in full]
    series = [bars("mean of a bin", middles, [one["mean"] for one in full], 0, text)]
    fit, caption = result["line"], "Ten bins of equal width."
    if fit:
        ends = [full[0]["low"], full[-1]["high"]]
        series.append(line("least squares", ends, [fit["intercept"] + fit["slope"] * x for x in ends], 1))
        caption += f" Correlation r = {fit['r']:.3f} over {result['count']:,} completions."
    return chart("Accuracy against length", series, caption, of, "answer's score", "bars")


def _difficulty(seen: list[Seen]) -> list[Block | None]:
    found = []
    for fact, rows in difficulty.by_difficulty(drawn_in_training(seen) or seen).items():
        classes = [row["class"] for row in rows]
        text = [f"{row['count']:,} completions" for row in rows]
        series = [
            bars("first quarter of the steps", classes, [row["first"] for row in rows], 0, text),
            bars("last quarter", classes, [row["last"] for row in rows], 1, text),
        ]
        found.append(chart(f"Accuracy by {fact}", series, "Of training.", fact, "fraction", "bars", percent=True))
    return found


def _languages(seen: list[Seen]) -> list[Block | None]:
    counted = languages.mixing(seen)
    rows = [
        [name, *(f"{of[one]:,.0f}" for one in languages.NAMES), f"{100 * of['mixed_share']:.2f} %"]
        for name, of in counted.items()
    ]
    head = ["text", "English", "Chinese", "mixed", "neither", "mixed, of all"]
    caption = "By their letters: A to Z, and U+4E00 to U+9FFF. Every completion of the file."
    moved = languages.over_time(seen)
    series = [
        line(name, moved["steps"], [row[i] for row in moved["shares"]], i) for i, name in enumerate(moved["classes"])
    ]
    used = [one for one in series if any(one["y"])]
    mixed = chart("Languages of the reasoning", used, "Of training.", y="share", form="stack", percent=True)
    return [table(head, rows, "Language mix", caption), mixed if len(used) > 1 else None]


def _stages(seen: list[Seen]) -> list[Block | None]:
    moved = stages.over_time(seen)
    covered = [sum(moved[name]) / len(moved[name]) for name in NAMES if moved.get(name)]
    if not covered or sum(covered) / len(NAMES) < COVERED:
        return []
    shares = [line(name, moved["steps"], moved[name], i) for i, name in enumerate(NAMES)]
    others = [
        line(said, moved["steps"], moved[name], i) for i, (name, said) in enumerate(WHOLE.items()) if name in moved
    ]
    caption = "Share of the completions of training that say something under the stage's heading."
    return [
        chart("Stages of social information processing", shares, caption, y="share", percent=True),
        chart("Stages: complete, in order, faithful", others, "Of training.", y="share", percent=True),
    ]


def _aha(seen: list[Seen]) -> Block | None:
    rows = [
        [one["word"], f"{one['count']:,.0f}", f"{100 * float(one['share']):.2f} %", f"{one['first']:.0f}"]
        for one in aha.words(seen)
    ]
    head = ["word", "completions", "share", "mean first character"]
    return table(head, rows, "Words of second thoughts", "In the reasoning, of every completion of the file.")
