"""
Which texts made a text classifier say so?
==========================================

A bag of words and a logistic regression: still the first thing to try on texts. It is a
linear model, so that the effect of every training text on every answer takes
milliseconds, and nothing is trained again. Here the texts are the docstrings of SciPy,
which are at hand.
"""

# %%
# Texts and topics
# ----------------
# The first two paragraphs of what SciPy says about its functions. The topic is the
# subpackage that a function is in.

import inspect
import textwrap
import time

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage, signal
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skattrib import DualInfluence
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes

found = {}
for topic, module in [("images", ndimage), ("signals", signal)]:
    for name in module.__all__:
        function = getattr(module, name)
        if inspect.isroutine(function) and inspect.getdoc(function):
            said = inspect.getdoc(function).split("\nParameters\n")[0]
            paragraphs = " ".join(said.split("\n\n")[:2]).split()
            found[" ".join(paragraphs)] = topic, name

texts = np.array(list(found), dtype=object)
topics, names = np.array(list(found.values())).T
print(f"{len(texts)} texts, {(topics == 'images').sum()} of them on images")

# %%
# A classifier, and four sentences
# --------------------------------
# The pipeline learns words and pairs of words. The sentences are our own. The answers
# to the first two are wrong, and the last could be about either topic.

classifier = make_pipeline(
    TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    LogisticRegression(C=10.0, tol=1e-8, max_iter=1000, random_state=0),
)
queries = np.array(
    [
        "Count the white spots of a photograph",
        "Turn a picture upside down",
        "Remove the hum of the mains from a recording",
        "Smooth a noisy measurement by a Gaussian filter",
    ],
    dtype=object,
)
dual = DualInfluence(classifier, random_state=0).fit(texts, topics)
answers = dual.estimator_.predict(queries)
for query, p in zip(queries, dual.estimator_.predict_proba(queries), strict=True):
    print(f"{query}: {dual.estimator_.classes_[p.argmax()]}, {p.max():.0%}")

# %%
# Which texts made it say so?
# ---------------------------
# What would become of the log-probability of the answer without each of the texts? The
# rows never become dense, and nothing is trained again.

start = time.perf_counter()
A = dual.attribute(queries, answers)
print(f"{A.size} effects in {1000 * (time.perf_counter() - start):.0f} ms")
for query, answer, row in zip(queries, answers, A, strict=True):
    print(f"\n{query}: {answer}")
    for i in [*np.argsort(-row)[:3], *np.argsort(row)[:2]]:
        text = textwrap.shorten(texts[i], 60, placeholder=" ...")
        print(f"  {row[i]:+.3f} {topics[i]:>7}  {names[i]}: {text}")

# %%
# So you see what an answer rests on. That the spots are on signals follows from nothing
# in particular, and "white" spoke against it. The hum has to do with ``detrend``, as
# both remove something from something. And that smoothing by a Gaussian filter is about
# images rests on a single docstring, without which the answer would be the other one.

# %%
# Is that what retraining says?
# -----------------------------
# The twelve texts with the largest effects are left out one at a time, and the
# classifier is trained again; then on ten random halves of the texts. ``attribute``
# takes one Newton step, which is a little off where an effect is large. With
# ``removal="refit"`` it goes on to the optimum, and ``predict_outcomes`` always does.

chosen = np.argsort(-abs(A).max(axis=0))[:12]
without = 1 - np.eye(len(texts))[chosen]
halves = make_weightings(len(texts), 10, stratify=topics, random_state=0)
everything = np.vstack([np.ones((1, len(texts))), without, halves])
real = retrain_outcomes(classifier, texts, topics, everything, queries, answers)
effects = (real[:1] - real[1 : 1 + len(chosen)]).T
refit = DualInfluence(classifier, removal="refit", random_state=0).fit(texts, topics)
by_refit = refit.attribute(queries, answers)[:, chosen]
predicted = dual.predict_outcomes(queries, answers, halves)
print(f"largest effect {effects.max():.4f} by retraining,")
print(f"{A.max():.4f} by a Newton step, {by_refit.max():.4f} by a refit")
print(f"LDS of the halves {lds_score(real[1 + len(chosen) :], predicted):.4f}")

# %%
# Left: the last sentence, which could be about either topic. Right: predicted effects
# against retraining, one dot for each text left out and each sentence.

row = A[-1]
strongest = np.append(np.argsort(-row)[:6], np.argsort(row)[:6][::-1])[::-1]
colors = dict(zip(["images", "signals"], ["#0072B2", "#D55E00"]))
fig, (left, right) = plt.subplots(
    ncols=2, figsize=(10.5, 4.4), width_ratios=[1.5, 1], layout="constrained"
)
left.barh(
    range(len(strongest)), row[strongest], color=[colors[topics[i]] for i in strongest]
)
left.set_yticks(range(len(strongest)), [names[i] for i in strongest])
left.axvline(0, color="black", linewidth=0.8)
left.set_title(f"“{queries[-1]}”: {answers[-1]}", fontsize=10)
left.set_xlabel("effect on the log-probability of the answer")
for topic, color in colors.items():
    left.barh([], [], color=color, label=topic)
left.legend(loc="lower right")

right.plot(effects.ravel(), A[:, chosen].ravel(), "o", color="#0072B2", label="Newton")
right.plot(effects.ravel(), by_refit.ravel(), "+", color="black", label="refit")
ends = [effects.min(), effects.max()]
right.plot(ends, ends, color="black", linewidth=0.8)
right.legend()
right.set(xlabel="effect by retraining", ylabel="effect by attribute")
plt.show()
