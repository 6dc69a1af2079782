"""Public pages: home with the login form, registration, about."""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_login import login_required, login_user, logout_user

from bookshop.extensions import cache, db, login_manager
from bookshop.public.forms import LoginForm
from bookshop.user.forms import RegisterForm
from bookshop.user.models import User

blueprint = Blueprint("public", __name__, static_folder="../static")


@login_manager.user_loader
def load_user(user_id):
    return db.session.get(User, int(user_id))


def flash_errors(form, category="warning"):
    for field, errors in form.errors.items():
        for error in errors:
            flash(f"{getattr(form, field).label.text} - {error}", category)


@blueprint.route("/", methods=["GET", "POST"])
def home():
    form = LoginForm(request.form)
    if request.method == "POST":
        if form.validate_on_submit():
            login_user(form.user)
            flash("You are logged in.", "success")
            return redirect(request.args.get("next") or url_for("user.members"))
        flash_errors(form)
    return render_template("public/home.html", form=form)


@blueprint.route("/logout/")
@login_required
def logout():
    logout_user()
    flash("You are logged out.", "info")
    return redirect(url_for("public.home"))


@blueprint.route("/register/", methods=["GET", "POST"])
def register():
    form = RegisterForm(request.form)
    if form.validate_on_submit():
        user = User(
            username=form.username.data,
            email=form.email.data,
            password=form.password.data,
            active=True,
        )
        db.session.add(user)
        db.session.commit()
        flash("Thank you for registering. You can now log in.", "success")
        return redirect(url_for("public.home"))
    flash_errors(form)
    return render_template("public/register.html", form=form)


@blueprint.route("/about/")
@cache.cached(timeout=60)
def about():
    return render_template("public/about.html", form=LoginForm(request.form))
