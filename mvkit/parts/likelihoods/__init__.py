"""Likelihoods p(x|z): from decoder outputs to elementwise log-probabilities, means and draws."""

from mvkit.parts.likelihoods.background import ForegroundBackground as ForegroundBackground
from mvkit.parts.likelihoods.counts import CountLikelihood as CountLikelihood
from mvkit.parts.likelihoods.counts import Poisson as Poisson
from mvkit.parts.likelihoods.discrete import Bernoulli as Bernoulli
from mvkit.parts.likelihoods.discrete import Categorical as Categorical
from mvkit.parts.likelihoods.hazard import Hazard as Hazard
from mvkit.parts.likelihoods.location_scale import Laplace as Laplace
from mvkit.parts.likelihoods.location_scale import LocationScale as LocationScale
from mvkit.parts.likelihoods.location_scale import Normal as Normal
from mvkit.parts.likelihoods.location_scale import StudentT as StudentT
from mvkit.parts.likelihoods.location_scale import StudentTLikelihood as StudentTLikelihood
from mvkit.parts.likelihoods.multinomial import Multinomial as Multinomial
from mvkit.parts.likelihoods.negative_binomial import NegativeBinomial as NegativeBinomial
from mvkit.parts.likelihoods.ordinal import Ordinal as Ordinal
from mvkit.parts.likelihoods.positive import Beta as Beta
from mvkit.parts.likelihoods.positive import Gamma as Gamma
from mvkit.parts.likelihoods.positive import LogNormal as LogNormal
from mvkit.parts.likelihoods.scales import OptimalScale as OptimalScale
from mvkit.parts.likelihoods.scales import Positive as Positive
