"""One model in eight languages (`sf.views`)."""

from sfumato.eight_views.page import Views as Views
from sfumato.eight_views.page import views as views
