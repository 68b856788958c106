"""Rankers without vectors, opened from a release: they can be evaluated, not served. Knows nothing of torch."""

from segue.errors import BadRelease
from segue.recommend import PopularityRanker, Ranker
from segue.release import Release
from training.models.baselines.knn import VmisKnn
from training.models.baselines.markov import MarkovRanker


def open_ranker(release: Release) -> Ranker:
    """The ranker of a release. Raises BadRelease for a model that this Segue does not know."""
    match release.manifest.model:
        case "popularity":
            return PopularityRanker(release.catalogue.plays)
        case "markov":
            return MarkovRanker.of_release(release)
        case "vmis-knn":
            return VmisKnn.of_release(release)
    raise BadRelease(f"{release.path} holds a {release.manifest.model}, which this Segue cannot evaluate: update Segue")
